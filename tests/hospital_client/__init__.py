"""Tests of `hospital_client`."""
