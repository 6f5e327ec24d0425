"""The batches of a stage, made as they are asked for: 10**12 steps begin at once; rows in groups of
similar length."""

import math


def by_length(lengths, stretch, most=math.inf):
    """Numbers of rows, the shortest first, in groups of up to `most`, in which none is longer than
    `stretch` times the first.

    >>> by_length([10, 13, 11], 1.15)
    [[0, 2], [1]]
    """
    groups = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        last = groups[-1] if groups else []
        if not last or len(last) == most or lengths[i] > stretch * lengths[last[0]]:
            groups.append([])
        groups[-1].append(i)
    return groups


class Batches:
    """batches[step] is a tensor of batch_size sample indices, cut from a stream of epochs.

    order(epoch) -> the indices of an epoch, from first_epoch on. Steps are taken in turn; asking
    for one before the last starts the stream again.
    """

    def __init__(self, order, first_epoch, batch_size, steps):
        self.order, self.first_epoch = order, first_epoch
        self.batch_size, self.steps = batch_size, steps
        self.last = steps                       # before the first use: step < last starts a stream

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        import torch  # the scores, which read this file too, do without it
        if not 0 <= step < self.steps:
            raise IndexError(step)
        if step < self.last:
            self.last, self.epoch = -1, self.first_epoch
            self.stream = torch.empty(0, dtype=torch.long)
        while self.last < step:
            while len(self.stream) < self.batch_size:
                self.stream = torch.cat([self.stream, self.order(self.epoch)])
                self.epoch += 1
            self.batch = self.stream[:self.batch_size]
            self.stream = self.stream[self.batch_size:]
            self.last += 1
        return self.batch
