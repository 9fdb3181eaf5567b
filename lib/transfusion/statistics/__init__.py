"""Numbers of arms and folds: metrics, intervals, contrasts of arms, and the gate of learning.

Arrays and tables in, numbers and verdicts out: nothing here knows networks, files or figures.
Take modules from here, as in `from transfusion.statistics import contrasts`; import nothing above.
"""
