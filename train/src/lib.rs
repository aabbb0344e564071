//! Stage two: the side network, the gate, the mask decoder, losses, optimizers and the training loop.
