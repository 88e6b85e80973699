"""A real SLURM on one machine: three nodes of four pretend GPUs, up in a second and gone without a trace.

``python -m tests.cluster up`` (``make cluster``) for anyone who wants to practise; `tests.cluster.fixtures` for pytest.

    layout.py      where its files lie, which ports it has, slurm.conf
    processes.py   its daemons as processes: started, found again and ended by pid
    node.py        one pretend node: what is started on it stays its descendant, so a power cut finds all of it
    services.py    munge, MariaDB, slurmdbd
    jobs.py        what scontrol says about jobs
    cluster.py     Cluster: up, down, submit, wait, crash, revive, time out
"""
