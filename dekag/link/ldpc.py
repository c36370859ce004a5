"""Decodes 5G LDPC codes: Sionna's flooding belief propagation, in less time.

The algorithm is the sum-product algorithm with the tanh rule (Gallager, *Low-Density Parity-Check Codes*,
1963; Ryan and Lin, *Channel Codes*, 2009, section 5.4). Each iteration computes the messages of all check
nodes, then those of all variable nodes, as in Sionna's `LDPC5GDecoder`, and they are the same up to rounding.
It takes less time for two reasons:

* The edges of all checks of equal degree form a matrix, so that products over the edges of a check are
  products of its rows. Sionna pads every node to the largest degree.
* A codeword that fulfils all its parity checks leaves the batch. Sionna runs a fixed number of iterations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding_bag

LLR_LIMIT = 20.0  # of the channel; Sionna's `llr_max`
_BATCH = 32
"""Codewords that are computed at once; the messages of more of them leave the processor's cache.

Batches take turns, so that all of their messages are in memory: up to 1 GB for a file of 1 MiB.
"""
_NOT_ZERO = 2.0**-26  # lets every message be divided out of a product
_MOST_TANH = 1 - 2.0**-23  # limits the messages of checks to 24 ln 2, as Sionna does


class LdpcDecoder:
    """Decoder of the codewords of one encoder. Stateless and thread-safe.

    Example:
        >>> import torch
        >>> from dekag.link.sionna_blocks import LDPC5GEncoder
        >>> encoder = LDPC5GEncoder(100, 200, device="cpu", precision="single")
        >>> sent = torch.randint(0, 2, (3, 100)).float()
        >>> bits, valid = next(LdpcDecoder(encoder).decode(4 * encoder(sent) - 2, 50))
        >>> torch.equal(bits.float(), sent), valid.tolist()
        (True, [True, True, True])
    """

    def __init__(self, encoder: Any) -> None:
        """Set up the graph of the code.

        Args:
            encoder: a `LDPC5GEncoder` of Sionna.
        """
        self._information_bits: int = encoder.k
        self._first_sent: int = 2 * encoder.z
        self._fillers: int = encoder.k_filler
        self._nodes = self._first_sent + self._fillers + encoder.n
        graph = encoder.pcm
        # The last bits of a 5G code are in one check each. One that is not sent says nothing, like its check.
        degrees = np.diff(graph.tocsc().indptr)
        extension = len(degrees) - int(np.argmin(degrees[::-1] == 1))
        self._nodes = max(self._nodes, extension)
        left_out = len(degrees) - self._nodes
        graph = graph[: graph.shape[0] - left_out, : self._nodes].tocsr()
        degrees = np.diff(graph.indptr)
        self._degrees: list[tuple[int, int]] = []  # of checks, and how many edges these checks have
        edges = []
        for degree in np.unique(degrees):
            first = graph.indptr[:-1][degrees == degree]
            edges.append(graph.indices[first + np.arange(degree)[:, None]].ravel())  # (degree, checks)
            self._degrees.append((int(degree), edges[-1].size))
        node_of_edge = np.concatenate(edges)
        by_node = np.argsort(node_of_edge, kind="stable")
        first_by_node = np.searchsorted(node_of_edge[by_node], np.arange(self._nodes))
        self._node_of_edge = _indices(node_of_edge)
        self._edges_of_nodes = _indices(by_node), _indices(first_by_node)
        self._nodes_of_checks = _indices(graph.indices), _indices(graph.indptr[:-1])

    def decode(
        self, soft_bits: torch.Tensor, iterations: int, *, step: int = 5
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Decoded information bits, and which codewords are finished, after every `step` iterations.

        The last ones come as soon as all codewords are finished. Rounding of messages may depend on the
        position of a codeword among the others.

        Args:
            soft_bits: (codewords, n) float32, log p(1)/p(0) of the coded bits; finite.
            iterations: at most that many for each codeword, at least `step`.
            step: iterations between results.

        Yields:
            Bits (codewords, k) uint8, and whether each codeword fulfils all parity checks, (codewords,) bool.
            Bits of such a codeword no longer change.
        """
        batches = [self._decode(part, step) for part in soft_bits.split(_BATCH)]
        for _ in range(iterations // step):
            results = [next(batch) for batch in batches]
            bits, valid = (torch.cat(each) for each in zip(*results, strict=True))
            yield bits, valid
            if valid.all():
                return

    @torch.inference_mode()
    def _decode(self, soft_bits: torch.Tensor, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # From here on log p(0)/p(1), with codewords as columns.
        channel = self._channel(soft_bits)
        bits = torch.empty(len(soft_bits), self._information_bits, dtype=torch.uint8)
        valid = torch.zeros(len(soft_bits), dtype=torch.bool)
        columns = torch.arange(len(soft_bits))  # of `bits`, those that are still being decoded
        to_nodes = torch.zeros(len(self._node_of_edge), len(soft_bits))  # half the messages of the checks
        total = channel
        while len(columns):
            to_checks = torch.empty_like(to_nodes)
            for _ in range(step):
                torch.index_select(total, 0, self._node_of_edge, out=to_checks).sub_(to_nodes, alpha=2)
                self._check_nodes(to_checks, to_nodes)
                total = torch.add(channel, _sums(to_nodes, self._edges_of_nodes), alpha=2)
                decided = torch.le(total, 0, out=torch.empty_like(total))
                halves = _sums(decided, self._nodes_of_checks).mul_(0.5)
                fulfilled = halves.frac_().amax(0) == 0  # all sums are even
                if fulfilled.any():
                    valid[columns] = fulfilled
                    bits[columns] = self._information(decided)
                    left = ~fulfilled
                    columns = columns[left]
                    if not len(columns):
                        break
                    channel, total, to_nodes = channel[:, left], total[:, left], to_nodes[:, left]
                    to_checks = torch.empty_like(to_nodes)
            else:
                bits[columns] = self._information(total <= 0)
            del to_checks  # other batches decode before this one goes on
            yield bits, valid
        del channel, total, to_nodes
        while True:
            yield bits, valid

    def _information(self, decided: torch.Tensor) -> torch.Tensor:
        """(codewords, k) uint8 of decided bits (nodes, codewords)."""
        return decided[: self._information_bits].T.to(torch.uint8)

    def _channel(self, soft_bits: torch.Tensor) -> torch.Tensor:
        """(nodes, codewords): what is known of each bit before decoding; 0 of those that are not sent."""
        sent = soft_bits.T.clamp(-LLR_LIMIT, LLR_LIMIT).neg()
        systematic = self._information_bits - self._first_sent
        channel = torch.zeros(self._nodes, len(soft_bits))
        channel[self._first_sent : self._information_bits] = sent[:systematic]
        parity = self._information_bits + self._fillers
        channel[self._information_bits : parity] = LLR_LIMIT
        channel[parity : parity + len(sent) - systematic] = sent[systematic:]
        return channel

    def _check_nodes(self, messages: torch.Tensor, answers: torch.Tensor) -> None:
        """Write `answers`, half of the checks' messages, to `messages`; (edges, codewords) both.

        `messages` are overwritten.
        """
        # tanh(x / 2) = 2 sigmoid(x) - 1, which takes less time; near 0 it is a multiple of 2^-24
        tanh = messages.sigmoid_().mul_(2).sub_(1).add_(_NOT_ZERO)
        first = 0
        for degree, edges in self._degrees:
            factors = tanh[first : first + edges].view(degree, -1)
            torch.div(factors.prod(0), factors, out=answers[first : first + edges].view(degree, -1))
            first += edges
        answers.clamp_(-_MOST_TANH, _MOST_TANH).atanh_()


def _indices(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int32))


def _sums(rows: torch.Tensor, members: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Sum over the rows of each node: their numbers, node by node, and where each node's begin."""
    indices, first = members
    return embedding_bag(indices, rows, first, mode="sum")
