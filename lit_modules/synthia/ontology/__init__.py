"""Ontology of objects, distance of affordances, and curriculum."""
