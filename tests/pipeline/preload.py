"""What the server of ``tests.pipeline.ranks`` imports before it forks."""

import torch

from pipeline.zero import import_deepspeed

import_deepspeed(torch.device("cpu"))
