"""Shell completion. Each script asks `hpc-dynamo __complete` for candidates at every Tab.

The answer has a line `CANDIDATE<TAB>DESCRIPTION` for each candidate. A candidate that ends in one
of `. = /` is incomplete: the shell adds no space after it.
"""
