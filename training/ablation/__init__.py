"""Ablations: many runs of one recipe that differ in a few fields, compared at equal budget.

`plan` turns a YAML file into runs, `work` trains those that are missing, `spectrum` keeps singular values, `report`
writes the tables, `plots` the pictures.
"""
