"""Cohorts: raw records of any source in, one packed store out."""
