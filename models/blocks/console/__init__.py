"""A differentiable mixing console: filters, dynamics, sends to a reverb and to echoes, and a master strip."""
