"""PyTorch: a tree of `torch.nn.Module`s whose `state_dict()` keys are the canonical names."""
