"""Tests of `shared_model`."""
