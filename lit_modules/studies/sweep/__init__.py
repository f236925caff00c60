"""Runs of fit and test over values of any argument."""
