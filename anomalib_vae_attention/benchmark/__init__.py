"""Comparing vae_attention with anomalib's PatchCore and PaDiM on data sets in MVTec AD's layout.

One *cell* is one model, fitted to one category with one seed, in a process of its own. :mod:`.command` plans the cells
and runs what is missing; :mod:`.cell` and :mod:`.latency` are what runs in the processes; :mod:`.tables` and
:mod:`.report` show the results. The planning side imports neither torch nor anomalib: a process's
peak memory is never counted lower than that of the process that started it.
"""
