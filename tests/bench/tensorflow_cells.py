"""TensorFlow: the published package `tensorflow-engram`, and Keras' own SimpleRNN, GRU, LSTM for the baselines.

Timed is `model.train_on_batch` of a compiled Keras model, which is what its users get: a tf.function around forward,
backward, clipnorm and Adam. Keras leaves XLA off on a CPU.
"""

import platform
from importlib.metadata import version
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from tensorflow_engram.layers import Engram as Layer
from tensorflow_engram.models import EngramNetwork


def versions(problem):
    named = {"tensorflow": tf.__version__, "keras": keras.__version__}
    return {"python": platform.python_version(), **named, "tensorflow-engram": version("tensorflow-engram")}


def build(problem, variant, threads):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    return (Engram if problem.cell == "engram" else Baseline)(problem)


class Training:
    """A compiled Keras model with our parameters; subclasses say of which layers, and how ours become theirs."""

    def __init__(self, problem):
        self.problem = problem
        self.model, x, y = self._build("float32")
        self.x, self.y = tf.constant(x), tf.constant(y)
        optimizer = keras.optimizers.Adam(1e-3, epsilon=1e-7, clipnorm=1.0)
        self.model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")

    def _build(self, dtype):
        """The model with our parameters, and batch-major data, all in `dtype`."""
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        ours, (x, y) = self.problem.model(dtype), self.problem.data(dtype)
        x = np.ascontiguousarray(x.swapaxes(0, 1))
        head = keras.layers.Dense(self.problem.classes, activation="softmax")
        model = keras.Sequential([keras.Input(x.shape[1:]), *self.layers(), head])
        self.predict(model, x)  # makes the variables
        for variable, value in zip(self.variables(model), self.to_theirs(ours), strict=True):
            variable.assign(value)
        return model, x, y

    def answers(self, dtype):
        model, x, y = self._build(dtype)
        variables = [variable.value for variable in self.variables(model)]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, self.predict(model, x)))
        grads = [g.numpy() for g in tape.gradient(loss, variables)]
        return {"loss": float(loss), **self.to_ours(grads)}

    def predict(self, model, x):
        return model(x, training=True)

    def run(self):
        self.model.train_on_batch(self.x, self.y)


class Engram(Training):
    """EngramNetwork as published. It draws noise and initial states without asking: zeros, for the check alone."""

    names = (
        *("0.W_z", "0.b_z", "0.W_c", "0.b_c", "0.W_h", "0.b_h"),
        *("0.gamma_z", "0.beta_z", "0.gamma_h", "0.beta_h", "0.M", "head.W", "head.b"),
    )

    def layers(self):
        (hidden,) = self.problem.hidden
        return [Layer(EngramNetwork(hidden, self.problem.slots, return_sequences=False))]

    def variables(self, model):
        layer, head = model.layers
        cell = layer.engram_cell
        dense = (cell.input_encoder, cell.hidden_integrator, cell.output_dense)
        norms = (cell.layer_norm1, cell.layer_norm2)
        found = [variable for layer in dense for variable in (layer.kernel, layer.bias)]
        found += [variable for layer in norms for variable in (layer.gamma, layer.beta)]
        return [*found, cell.memory_bank, head.kernel, head.bias]

    def to_theirs(self, ours):
        return [ours.params[name] for name in self.names]

    def to_ours(self, grads):
        return dict(zip(self.names, grads, strict=True))

    def predict(self, model, x):
        def zeros(shape, mean, stddev, dtype):
            return tf.zeros(shape, dtype)

        with mock.patch.object(tf.random, "normal", zeros):
            return model(x, training=True)


class Baseline(Training):
    """Keras packs gates side by side, (D, G H), where ours are stacked, (G, D, H)."""

    def layers(self):
        layer = {"rnn": keras.layers.SimpleRNN, "gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[self.problem.cell]
        *below, top = self.problem.hidden
        return [*(layer(hidden, return_sequences=True) for hidden in below), layer(top)]

    def variables(self, model):
        return model.trainable_variables  # kernel, recurrent kernel and bias of every layer, then the head's two

    def to_theirs(self, ours):
        found = []
        for i, cell in enumerate(ours.cells):
            p = ours.layer_params(i)
            found += [p[name].swapaxes(0, 1).reshape(p[name].shape[1], -1) for name in ("W_x", "W_h")]
            bias = np.stack([p[name].reshape(-1) for name in cell.biases])
            found.append(bias[0] if len(bias) == 1 else bias)  # only GRU has two
        return [*found, ours.params["head.W"], ours.params["head.b"]]

    def to_ours(self, grads):
        *layers, W, b = grads
        found = {"head.W": W, "head.b": b}
        for i, H in enumerate(self.problem.hidden):
            W_x, W_h, bias = layers[3 * i : 3 * i + 3]
            for name, g in {"W_x": W_x, "W_h": W_h}.items():
                found[f"{i}.{name}"] = g.reshape(len(g), -1, H).swapaxes(0, 1)
            names = ("b",) if bias.ndim == 1 else ("b_x", "b_h")
            found |= {f"{i}.{name}": g.reshape(-1, H) for name, g in zip(names, np.atleast_2d(bias), strict=True)}
        return found
