"""Measures: what is computed about students, stores and labelled images, before anybody reads it."""
