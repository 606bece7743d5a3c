"""Exports: a student in the forms that other programs load, one file a form, each compared with the student itself."""
