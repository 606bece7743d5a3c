"""Measures: what is computed about students, stores and labelled images, before it is reported."""
