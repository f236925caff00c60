"""Many runs of the methods: comparison, sweep, sequence, stress tests."""
