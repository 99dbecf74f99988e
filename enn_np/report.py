"""Tables and figures from stored results: what the README shows is what a command wrote under data/results/.

A page names its tables by marks, <!-- KIND:A:B --> ... <!-- /KIND:A:B -->, which `python -m enn_np tables` fills:

    results:mnist:paper     a benchmark's models by a protocol, means over seeds beside the paper's numbers
    tests:mnist:paper       those models in pairs: differences, tests, effect sizes
    ablation:mnist:recall   the settings of `variants.ABLATIONS` on two benchmarks
    replay:published:mnist  the paper's own tests, on its own numbers
    bench:cpu:2             times against other frameworks, of bench/cpu.json, on two threads
    claims:RUN              what the traces of a stored run say of the paper's claims
"""

import re
from itertools import combinations
from pathlib import Path

import numpy as np

from . import claims, variants
from .checkpoint import read_arrays, write_text
from .experiments import NETWORKS
from .look import attribution, plots
from .memory import TASKS, known
from .protocols import PAPER, TITLES, curves, read_json, read_result

DASH = "-"
MARKS = r"<!-- (results|tests|ablation|replay|bench):(\w+):(\w+) -->"


def load_results(folder, benchmark, protocol):
    """{model: [result, ...]} of every stored run, sorted by seed. Raises ValueError naming a file that is no result."""
    found = {}
    for path in sorted(Path(folder).glob("*.json")):
        result = read_result(path)
        key, seed = (result["benchmark"], result["protocol"], result["model"]), result["seed"]
        if key[:2] == (benchmark, protocol) and result["stopped"] != "diverged":
            if seed in found.setdefault(key[2], {}):
                raise ValueError(f"{path}: a second result of {'-'.join(key)}-{seed}; remove one")
            found[key[2]][seed] = result
    names = NETWORKS if known(benchmark) else variants.names(benchmark, protocol)
    order = {name: i for i, name in enumerate(names)}
    models = sorted(found, key=lambda model: order.get(model, len(order)))
    return {model: [runs[seed] for seed in sorted(runs)] for model, runs in ((m, found[m]) for m in models)}


def table(kind, a, b, folder):
    """The table of a mark, in Markdown."""
    kinds = {"results": results_table, "tests": tests_table, "ablation": ablation_table, "bench": bench_table}
    return replay_table() if kind == "replay" else kinds[kind](folder, a, b)


def results_table(folder, benchmark, protocol):
    """A row per model: means over seeds with their intervals, beside the paper's numbers, and what they ran on."""
    results, published = load_results(folder, benchmark, protocol), PAPER.get(benchmark, {})
    columns = _columns(benchmark, protocol)
    rows = [[TITLES.get(model, model), _seeds(runs)] for model, runs in results.items()]
    for row, (model, runs) in zip(rows, results.items(), strict=True):
        row += [column(runs, published.get(model, {})) for column in columns.values()]
    several = max((len(runs) for runs in results.values()), default=0) > 1 and "95% interval" in columns
    return (
        _markdown(["model", "seeds", *columns], rows) + "\n\n" + _origin(results) + " Intervals: Student's t." * several
    )


def _columns(benchmark, protocol):
    """{title: function of a model's runs and the paper's numbers}."""
    if task := known(benchmark):
        scores = {
            title: lambda runs, paper, key=key, form=form: f"**{_spread(runs, key, form)}**"
            for title, key, form in task.columns
        }
        return scores | {
            "steps": lambda runs, paper: f"{np.mean(_values(runs, 'steps')):,.0f}",
            "learning rate": lambda runs, paper: f"{runs[0]['training']['learning_rate']:g}",
            "parameters": lambda runs, paper: f"{runs[0]['parameters']:,}",
        }
    language, score = benchmark.startswith("wikitext"), _score(benchmark)
    form = {"test_accuracy": ".2%", "test_loss": ".4f", "test_perplexity": ".1f"}[score]
    columns = {}
    if language and protocol == "sound":
        columns["valid perplexity"] = lambda runs, paper: _spread(runs, "valid_perplexity", ".1f")
    columns[score.replace("_", " ")] = lambda runs, paper: f"**{_spread(runs, score, form)}**"
    columns["95% interval"] = lambda runs, paper: _interval(_values(runs, score), form)
    if benchmark in PAPER and not (language and protocol == "sound"):
        columns["paper"] = lambda runs, paper: _number(paper.get(score), form)
    if language and protocol == "sound":
        columns["unigram, test"] = lambda runs, paper: _spread(runs, "test_unigram_perplexity", ".1f")
    if language:
        columns["accuracy"] = lambda runs, paper: _spread(runs, "test_accuracy", ".1%")
    elif benchmark == "regression":
        columns["straight line"] = lambda runs, paper: _spread(runs, "test_linear_loss", ".4f")
    else:
        columns["test loss"] = lambda runs, paper: _spread(runs, "test_loss", ".4f")
        columns["paper: loss"] = lambda runs, paper: _number(paper.get("test_loss"), ".4f")
    columns["parameters"] = lambda runs, paper: f"{runs[0]['parameters']:,}"
    if protocol == "sound":
        columns["learning rate"] = lambda runs, paper: f"{runs[0]['history']['learning_rate'][0]:g}"
    columns["epochs"] = lambda runs, paper: f"{np.mean([len(run['history']['loss']) for run in runs]):.3g}"
    columns["minutes"] = lambda runs, paper: f"{np.mean(_values(runs, 'seconds')) / 60:.3g}"
    return columns


def tests_table(folder, benchmark, protocol):
    """A row per pair that is asked about: what `statistics.compare` finds; losses and perplexities turned around."""
    from .statistics import compare, interquartile_mean

    results, score = load_results(folder, benchmark, protocol), _score(benchmark)
    sign, form = (1, "+.2%") if score == "test_accuracy" else (-1, "+.4g")
    scores = {model: {run["seed"]: sign * run[score] for run in runs} for model, runs in results.items()}
    pairs = _comparable(scores, [pair for pair in combinations(scores, 2) if _asked(*pair)])
    if not pairs:
        return "Not yet: it needs two seeds of two models."
    rows = [
        [
            f"{TITLES.get(each.a, each.a)} - {TITLES.get(each.b, each.b)}",
            str(each.seeds),
            f"**{each.difference:{form}}**",
            DASH if each.interval is None else " to ".join(format(end, form) for end in each.interval),
            f"{each.welch:.2g}",
            f"{each.permutation:.2g}",
            f"{each.hedges_g:+.1f}",
            f"{each.improvement:.0%}",
        ]
        for each in compare(scores, pairs)
    ]
    head = ["pair", "seeds", "difference", "95% interval", "Welch p", "permutation p", "Hedges' g", "P(first better)"]
    middle = ", ".join(
        f"{TITLES.get(model, model)} {_number(abs(interquartile_mean(list(runs.values()))), form.strip('+'))}"
        for model, runs in scores.items()
        if any(model in pair for pair in pairs)
    )
    what = "" if sign > 0 else f" Differences are of {score.replace('_', ' ')}, turned so that more is better."
    return (
        _markdown(head, rows)
        + "\n\nIntervals: Student's t, paired by seed. p values are Holm-adjusted. "
        + f"Interquartile means: {middle}.{what}"
    )


def ablation_table(folder, *benchmarks):
    """A row per setting: accuracy and its difference from "full" on every benchmark that has results, and how many
    slots take part."""
    from .statistics import compare

    loaded = {benchmark: load_results(folder, benchmark, "ablation") for benchmark in benchmarks}
    loaded = {benchmark: results for benchmark, results in loaded.items() if results}
    head, columns = ["setting", "change"], []
    for benchmark, results in loaded.items():
        head += [f"{benchmark}: accuracy", "from full", "p", f"slots of {variants.ABLATED[benchmark][1]}"]
        scores = {name: {run["seed"]: run["test_accuracy"] for run in runs} for name, runs in results.items()}
        pairs = _comparable(scores, [(name, "full") for name in scores if name != "full" and "full" in scores])
        found = {each.a: each for each in compare(scores, pairs)}
        columns.append({name: _ablated(runs, found.get(name)) for name, runs in results.items()})
    rows = []
    for name in (name for name in variants.ABLATIONS if any(name in column for column in columns)):
        change = ", ".join(f"{key} = {value}" for key, value in variants.ABLATIONS[name].items()) or DASH
        rows.append([name, change, *(cell for column in columns for cell in column.get(name, [DASH] * 4))])
    origins = [f"{benchmark}: {_origin(results)}" for benchmark, results in loaded.items()]
    return "\n\n".join([_markdown(head, rows), "p: Welch's, Holm-adjusted.", *origins])


def _asked(a, b):
    """Whether a pair is a question of this project: one has a memory, and the sizes are those of one comparison; or
    Binding and what controls for a part of it. Every pair more would raise the adjusted p values of all."""
    if controls := {a, b} & variants.CONTROLS.keys():
        return {a, b} - controls <= {"binding", "binding-parameters"} and len(controls) == 1
    kinds = {name.partition("-")[0] for name in (a, b)}
    return bool(kinds & {"engram", "binding"} and _sizes(a) & _sizes(b))


def _sizes(name):
    """The comparisons that a network is of: the paper's sizes, "", and those that are made to match Engram."""
    if name == "engram":
        return {"", "parameters", "time"}
    return {name.partition("-")[2] if name in variants.MATCHED else ""}


def _comparable(scores, pairs):
    """The pairs that have two seeds in common."""
    return [(a, b) for a, b in pairs if len(scores[a].keys() & scores[b].keys()) > 1]


def _ablated(runs, comparison):
    slots = DASH
    if "trace" in runs[0]:
        slots = f"{np.mean([run['trace'][-1]['effective_slots'] for run in runs]):.1f}"
    against = [DASH, DASH] if comparison is None else [f"{comparison.difference:+.2%}", f"{comparison.welch:.2g}"]
    return [_spread(runs, "test_accuracy", ".2%"), *against, slots]


def replay_table():
    """The paper's tests on its eight numbers, what they can say at best, and how often such "samples" mislead."""
    from .statistics import false_alarms, kruskal_limit, replay

    found, (H, p) = replay(), kruskal_limit()
    rows = [
        ["ANOVA, accuracy", f"F = {found.F:.2f}, p = {found.F_p:.5f}"],
        ["Kruskal-Wallis, loss", f"H = {found.H:.2f}, p = {found.H_p:.4f}"],
        *([f"Tukey HSD: {a} - {b}", f"{d:+.4f}, p = {q:.4f}"] for (a, b), (d, q) in found.tukey.items()),
        ["Kruskal-Wallis at best, 4 groups of 2 without any overlap", f"H = {H:.3f}, p = {p:.3f}"],
    ]
    for rho in (0, 0.5, 0.9, 0.99):
        alarms = f"{false_alarms(rho):.1%} of the time"
        rows.append([f"ANOVA p < 0.05 among four equal models, two values correlated {rho:g}", alarms])
    return _markdown(["test", "result"], rows)


def bench_table(folder, name, threads):
    """A row per work and foreign peer of `folder`/bench/NAME.json, what `python -m tests.bench --json` wrote, or where
    it has no foreign peer, of our own works against each other."""
    found = read_json(Path(folder) / "bench" / f"{name}.json")
    foreign = [row for row in found["rows"] if not row["peer"].startswith("enn_np")] or found["rows"]
    header, rows = found["header"], [row for row in foreign if row["threads"] == int(threads)]
    cells = []
    for row in rows:
        ratio = DASH if row["ratio"] is None else f"**{row['ratio']:.2f}**"
        times = [DASH if row[f"{side}_ms"] is None else f"{row[f'{side}_ms']:.3g}" for side in ("ours", "peer")]
        cells.append([row["work"], row["peer"], *times, ratio, _number(row["floor_share"], ".0%"), row["unit"]])
    head = ["work", "against", "ours, ms", "theirs, ms", "theirs / ours", "share of floor", "per"]
    speed = next((row["gemm_gflops"] for row in rows if row["gemm_gflops"]), None)
    versions = ", ".join(f"{k} {v}" for each in header["versions"].values() for k, v in each.items() if k != "python")
    where = f"{header['cpu']}, {header['cpus']} CPUs, {threads} thread{'s' * (int(threads) > 1)}"
    product = f"a matrix product at {_number(speed, '.0f')} GFLOP/s"
    return f"{_markdown(head, cells)}\n\nMedians of {header['repeats']} rounds; {where}, {product}; {versions}."


def fill(page, folder):
    """Write every table between its marks in `page`, a Markdown file. Returns the names of the tables."""
    page, found = Path(page), []

    def fresh(match):
        found.append(":".join(match.groups()))
        return f"<!-- {found[-1]} -->\n{table(*match.groups(), folder)}\n<!-- /{found[-1]} -->"

    text, of_claims = claims.fill(page.read_text(encoding="utf-8"), folder)
    write_text(page, re.sub(MARKS + r".*?<!-- /\1:\2:\3 -->", fresh, text, flags=re.DOTALL))
    return found + of_claims


def figures(folder):
    """Draw what the README shows into `folder`/figures, PNG and SVG, from the stored runs alone. Returns the paths.

    Learning curves of every benchmark and protocol, with bands from the lowest to the highest seed, and of tasks that
    ask for memory; of stored traces (the .npz beside an Engram result), retrieval weights, the trace over training, and
    what `claims` says of them; what a binding memory recalls, as arcs.
    """
    folder, drawn, written = Path(folder), {}, []
    for benchmark in (*variants.SHAPES, "wikitext2", "wikitext103"):
        for protocol in variants.PROTOCOLS[:2] if benchmark != "recall" else ():
            results = load_results(folder, benchmark, protocol)
            few = [model for model in (*variants.MODELS, "binding") if model in results]  # matched sizes: the table
            histories = {TITLES[model]: [run["history"] for run in results[model]] for model in few}
            if histories:
                name = benchmark if protocol == "paper" else f"{benchmark}-{protocol}"
                first = histories[TITLES[few[0]]][0]
                drawn[f"{name}-learning-curves"] = plots.learning_curves(histories, **curves(first))
    for path in sorted(folder.glob("*-engram-*.npz")):
        stored = read_arrays(path)
        traces, a, x = stored["traces"], stored["retrieval"][0], stored["probe"][0]
        x = x.reshape(len(x), -1, 3) if x.shape[-1] % 3 == 0 else x
        drawn[f"{path.stem}-retrieval"] = plots.retrieval_over_time(a, image=np.clip(x, 0, 1))
        drawn[f"{path.stem}-trace"] = plots.trace_evolution(traces, labels=range(len(traces)))
        written += claims.write(folder, path.stem)
    for name, tasks in task_histories(folder).items():
        drawn[f"{name}-sound-learning-curves"] = plots.task_curves(tasks)
    path = folder / "recall8-sound-binding-0.json"
    if path.exists() and "recalled" in (found := read_result(path)):
        drawn[f"{path.stem}-arcs"] = plots.arcs(*attribution.told(found["recalled"]))
    paths = [folder / "figures" / f"{name}{suffix}" for name in drawn for suffix in (".png", ".svg")]
    for path in paths:
        plots.save(drawn[path.stem], path)
    return paths + written


def task_histories(folder):
    """{family: {task: {network: histories}}} of the networks with several seeds: all sizes of a task in one."""
    found, names = {}, {read_result(path)["benchmark"] for path in folder.glob("*-sound-*.json")}
    for task in sorted(filter(None, map(known, names)), key=lambda task: ([*TASKS].index(task.kind), task.size)):
        results = {model: runs for model, runs in load_results(folder, task.name, "sound").items() if len(runs) > 1}
        histories = {TITLES.get(model, model): [run["history"] for run in runs] for model, runs in results.items()}
        title = f"{task.size} pairs" if task.kind == "recall" else task.name
        found.setdefault(task.family, {}).update({title: histories} if histories else {})
    return {family: tasks for family, tasks in found.items() if tasks}


# ------------------------------------------------------------------------------------------------------------- cells


def _score(benchmark):
    """What a benchmark is judged by."""
    if benchmark.startswith("wikitext"):
        return "test_perplexity"
    if task := known(benchmark):
        return task.columns[0][1]
    return "test_loss" if benchmark == "regression" else "test_accuracy"


def _values(runs, key):
    return [run[key] for run in runs]


def _spread(runs, key, form):
    """Mean, and the standard deviation where there is one."""
    values = _values(runs, key)
    mean = format(np.mean(values), form)
    return mean if len(values) < 2 else f"{mean.rstrip('%')} ± {format(np.std(values, ddof=1), form)}"


def _interval(values, form):
    from .statistics import interval

    found = interval(values)
    return DASH if found is None else " to ".join(format(end, form) for end in found)


def _number(value, form):
    return DASH if value is None else format(value, form)


def _seeds(runs):
    """The seeds of runs: "0", "0 to 4", or "0, 2, 3"."""
    seeds = _values(runs, "seed")
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) == seeds[-1] - seeds[0] + 1 > 1 else ", ".join(map(str, seeds))


def _origin(results):
    """Under what protocol, how much of the data, and on which machines."""
    runs = [run for each in results.values() for run in each]
    if not runs:
        return "No stored results yet."
    limits = {run.get("training", {}).get("limit") for run in runs} - {None}
    shorter = f" Trained on the first {', '.join(f'{limit:,}' for limit in sorted(limits))} only." if limits else ""
    machines = sorted({_machine(run["machine"]) for run in runs})
    return f"Protocol: {runs[0]['protocol']}.{shorter} Measured on: {'; '.join(machines)}."


def _machine(machine):
    threads = machine["blas_threads"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, BLAS threads: {threads}, "
        f"NumPy {machine['numpy']}, Python {machine['python']}"
    )


def _markdown(head, rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
