"""The batches of a stage, made as they are asked for: 10**12 steps begin at once."""

import torch


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
