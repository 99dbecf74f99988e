"""NumPy by hand against other frameworks: every competitor in a process of its own, by an interpreter of its own.

    timing              what is asked, turn by turn; the table and the chart
    works               every work, who takes part in it, and who is compared with whom
    problem             one work: its sizes, our model of it, the numbers from one seed, its multiply-adds
    process             this end of a worker's pipe: start a worker, ask it, never wait for ever
    worker              the worker's end: check against our gradients, then "run once" -> seconds
    numpy_cells         our own side, as a user trains
    torch_cells, jax_cells, tensorflow_cells     the peers; only a worker imports them

Each *_cells has `versions(problem)` and `build(problem, variant, threads)`, whose result has `answers(dtype)`: loss and
gradients under our names (None if it has no such precision), and `run()`: the work once, to its end on a card too.
"""
