"""All equations of the cells on one page, forward and back: writes cheatsheet.pdf and .svg.

    python notebooks/cheatsheet.py [--out DIR]

The letters are those of the code: ops, cells, engram and binding in enn_np.
"""

import argparse
import re
import zlib
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

# A block begins with #. A line that is not indented goes forward; those under it go back,
# the first of them beside it. x' is a transpose, * goes entry by entry, words are quoted.
PAGE = """
# All equations of enn_np, forward and back
"Vectors are rows. "dX" is the gradient of the loss at "X"."
    x'" transpose"   x * y" entry by entry"   <x, y>" sum of "x * y" over the last axis"
"Forward goes down, back goes up, row by row."
    sum" runs over steps and samples. What is used twice gets two gradients, hence "{+}="."
e.x, k.x, de.x" are fields, as in the code:"
    e" is what encode keeps, "k" what a step keeps, "de" what a step back leaves behind."
[y > 0]" is 1 where it is true, else 0."
    dh_t, dc_t, dA_t, da_t" hold what later steps sent back, "dh_t" also the loss at "t"."

# Building blocks (ops.py)
"linear  "y = x W + b
    dx = dy W'  dW = sum x' dy  db = sum dy
y = ReLU(x)   y = tanh(x)   y = sigmoid(x)
    dx = dy * [y > 0]   dx = dy * (1 - y^2)   dx = dy * y * (1 - y)
y = softmax(x)
    dx = y * (dy - <dy, y>)
u = unit(v) = v / |v|
    dv = unit_back(du) = (du - u <du, u>) / |v|
y = LN(x) = gamma * x_hat + beta  x_hat = (x - mean(x)) inv
    dx = LN_back(dy) = (dx_hat - mean(dx_hat) - x_hat mean(dx_hat * x_hat)) inv
inv = (var(x) + 10^{-6})^{-1/2}
    dgamma = sum dy * x_hat  dbeta = sum dy  dx_hat = dy * gamma
"match  "s = z M'
    dz = ds M  dM = ds' z
"read  "m = a M
    da = dm M'  dM = a' dm
"write  "D = a' z
    da = z dD'  dz = a dD

# RNN (cells.py)
h_t = tanh(x_t W_x + h_{t-1} W_h + b)
    de.s = dh_t * (1 - h_t^2)  dh_{t-1} = de.s W_h'  dx_t = de.s W_x'
    dW_x = sum x_t' de.s  dW_h = sum h_{t-1}' de.s  db = sum de.s

# GRU (cells.py)
"the state before, and the weights"
    dh_{t-1} += de.z W_{hz}' + de.r W_{hr}' + de.u W_{hn}'
    dx_t = de.z W_{xz}' + de.r W_{xr}' + de.n W_{xn}'
    dW_x = sum x_t' (de.z, de.r, de.n)   dW_h = sum h_{t-1}' (de.z, de.r, de.u)
    db_x = sum (de.z, de.r, de.n)   db_h = sum (de.z, de.r, de.u)
z_t = sigmoid(x_t W_{xz} + b_{xz} + h_{t-1} W_{hz} + b_{hz})
    de.z = dh_t * (h_{t-1} - n_t) * z_t * (1 - z_t)
r_t = sigmoid(x_t W_{xr} + b_{xr} + h_{t-1} W_{hr} + b_{hr})
    de.r = de.n * u_t * r_t * (1 - r_t)
u_t = h_{t-1} W_{hn} + b_{hn}
    de.u = de.n * r_t
n_t = tanh(x_t W_{xn} + b_{xn} + r_t * u_t)
    de.n = dh_t * (1 - z_t) * (1 - n_t^2)
h_t = z_t * h_{t-1} + (1 - z_t) * n_t
    dh_{t-1} = dh_t * z_t

# LSTM (cells.py)
s_k = x_t W_{xk} + h_{t-1} W_{hk} + b_k  "for "k = i, f, g, o
    dh_{t-1} = de.i W_{hi}' + de.f W_{hf}' + de.g W_{hg}' + de.o W_{ho}'
    dx_t = de.i W_{xi}' + de.f W_{xf}' + de.g W_{xg}' + de.o W_{xo}'
    dW_{xk} = sum x_t' de.k  dW_{hk} = sum h_{t-1}' de.k  db_k = sum de.k
i_t, f_t = sigmoid(s_i), sigmoid(s_f)
    de.i = dc_t * g_t * i_t * (1 - i_t)   de.f = dc_t * c_{t-1} * f_t * (1 - f_t)
g_t, o_t = tanh(s_g), sigmoid(s_o)
    de.g = dc_t * i_t * (1 - g_t^2)   de.o = dh_t * tanh(c_t) * o_t * (1 - o_t)
c_t = f_t * c_{t-1} + i_t * g_t
    dc_{t-1} = dc_t * f_t
h_t = o_t * tanh(c_t)
    dc_t += dh_t * o_t * (1 - tanh^2(c_t))

# Engram (engram.py), one trace for the batch; one per sample: no B, dM sums over samples
(1) z_t = LN(ReLU(x_t W_z + b_z))
    dg_t = LN_back(de.z) * [e.r > 0]  dx_t = dg_t W_z'  dW_z = sum x_t' dg_t
(2) M~_t = M + alpha A_{t-1}
    dM += dM~_t  dA_{t-1} += alpha dM~_t
(3) s_t = cos(z_t, "rows of "M~_t)
    de.z = dz_t + unit_back(de.s unit(M~_t))  dM~_t += unit_back(de.s' unit(z_t))
(4) a_t = softmax(s_t / tau_s)  tau_s = tau / (1 + 10 sigma)
    de.s = a_t * (da_t - <da_t, a_t>) / tau_s
(5) m_t = a_t M~_t
    da_t += dm_t M~_t'  dM~_t = a_t' dm_t
(6) c_t = ReLU([z_t; m_t; h_{t-1}] W_c + b_c)
    de.c = (de.r W_h') * [c_t > 0]  [dz_t; dm_t; dh_{t-1}] += de.c W_c'
    dW_c = sum [z_t; m_t; h_{t-1}]' de.c
(7) h_t = LN(ReLU(c_t W_h + b_h))
    de.r = LN_back(dh_t) * [k.r > 0]  dW_h = sum c_t' de.r
(8) D_t = a_t' z_t / B
    da_t = z_t dD_t' / B  dz_t = a_t dD_t / B
(9) A_t = clip((1 - eta) A_{t-1} + eta (D_t + eps_t), -c, c)
    dA_bar = dA_t * [|A_t| < c]  dD_t = eta dA_bar  dA_{t-1} = (1 - eta) dA_bar

# Binding (binding.py), as it comes, of one sample
(1) z_t = LN(ReLU(x_t W_z + b_z))
    de.r = LN_back(de.z) * [e.r > 0]  dx_t += de.r W_z'  dW_z = sum x_t' de.r
(2) a_t = softmax(cos(z_t, "rows of "M) / tau)
    de.s = a_t * (da_t - <da_t, a_t>) / tau  de.z += unit_back(de.s unit(M))
    dM += unit_back(sum de.s' unit(z_t))
(3) m_t = a_t M + a_t A_{t-1}
    da_t += de.m (M + A_{t-1})'  dM = sum a_t' de.m  dA_{t-1} += a_t' de.m
(4) v_t = x_t W_v + b_v
    dx_t += de.v W_v'  dW_v = sum x_t' de.v
(5) g_t = sigmoid(x_t w_g + h_{t-1} u_g + b_g)
    de.g = dg_t g_t (1 - g_t)  dh_{t-1} += de.g u_g'  dx_t = de.g w_g'
    dw_g = sum x_t' de.g  du_g = sum h_{t-1}' de.g
(6) w_t = g_t a_{t-1}
    dg_t = <dw_t, a_{t-1}>  da_{t-1} = g_t dw_t
(7) A_t = (1 - delta) (1 - w_t) A_{t-1} + w_t' v_t
    dw_t = v_t dA_t' - (1 - delta) <dA_t, A_{t-1}>  de.v = w_t dA_t
    dA_{t-1} = (1 - delta) (1 - w_t) dA_t
(8) c_t = ReLU([z_t; m_t; h_{t-1}] W_c + b_c)
    de.c = (de.q W_h') * [c_t > 0]  [de.z; de.m; dh_{t-1}] += de.c W_c'
k_t = LN(ReLU(c_t W_h + b_h))
    de.q = LN_back(de.k) * [k.q > 0]  dW_c, dW_h" as of Engram"
(9) u_t = sigmoid([z_t; m_t; h_{t-1}] W_u + b_u)
    [de.z; de.m; dh_{t-1}] += de.u W_u'  dW_u = sum [z_t; m_t; h_{t-1}]' de.u
h_t = u_t * h_{t-1} + (1 - u_t) * k_t
    de.k = dh_t * (1 - u_t)  de.u = de.k * (h_{t-1} - k_t) * u_t  dh_{t-1} = dh_t * u_t
"""
FUNCTIONS = r"ReLU|tanh|sigmoid|softmax|(?:unit|LN)(?:\\_back)?|mean|var|clip|cos|inv"
GREEK = "alpha|beta|gamma|delta|eta|tau|sigma"
AS_TEX = (
    (r" {3}", r" \\qquad "),
    (r" {2}", r" \\quad "),
    (r"(?<=[\w)\]}'~>]) (?=[\w(\[<])", r"\\,"),
    (r"\b(de|e|k)\.(\w)", r"\\mathtt{\1}{.}\\!\\mathtt{\2}"),
    (rf"(?<![a-z])(d?)({GREEK})(?![a-z])", r"\1\\\2 "),
    (r"_back", r"\\_back"),
    (rf"\b({FUNCTIONS})", r"\\mathrm{\1}"),
    (r"(d?)(\w)_hat", r"\1\\hat{\2}"),
    (r"A_bar", r"\\bar{A}"),
    (r"M~", r"\\tilde{M}"),
    (r"eps", r"\\varepsilon "),
    (r"\bsum", r"\\Sigma"),
    (r" \* ", r" \\odot "),
    (r"<(?=\S)(.*?)(?<=\S)>", r"\\langle \1\\rangle "),
    (r" \+=", r"\\;{+}\\!{=}\\;"),
    (r"(?<=[\w})\]])'", r"^\\top "),
)
LEFT, MIDDLE, TOP, STEP = 0.045, 0.405, 0.985, 0.0139  # shares of the page
SETTINGS = {"font.family": "STIXGeneral", "font.size": 8.6, "mathtext.fontset": "stix"}
SETTINGS |= {"pdf.fonttype": 42, "svg.hashsalt": "enn_np"}


def tex(line):
    """A line of PAGE for matplotlib's mathtext."""
    parts = line.split('"')  # words are at odd places
    for pattern, becomes in AS_TEX:
        parts[::2] = [re.sub(pattern, becomes, part) for part in parts[::2]]
    parts[1::2] = [r"\mathrm{" + part.replace(" ", r"\ ") + "}" for part in parts[1::2]]
    return f"${''.join(parts)}$"


def draw():
    """The page, A4, as a figure."""
    figure, y, before = Figure(figsize=(8.27, 11.69)), TOP, ""
    for line in PAGE.splitlines():
        back, number = line.startswith("    "), re.match(r"\(\d\) ", line)
        if not back or before.startswith("    "):  # else it stands beside the one before
            y -= STEP
        if line.startswith("# "):
            figure.text(LEFT, y, line[2:], weight="bold", size=9.5)
        elif line:
            if number:
                figure.text(LEFT, y, number[0].strip())
                line = line.removeprefix(number[0])
            figure.text(MIDDLE if back else LEFT + 0.03, y, tex(line.strip()))
        before = line
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    known = {"Keywords": f"{zlib.crc32(PAGE.encode()):08x}"}  # says of which PAGE a file is
    with mpl.rc_context(SETTINGS):
        page = draw()
        for kind, date in (("pdf", "CreationDate"), ("svg", "Date")):
            page.savefig(out / f"cheatsheet.{kind}", metadata=known | {date: None})


if __name__ == "__main__":
    main()
