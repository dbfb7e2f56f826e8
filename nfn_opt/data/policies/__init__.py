"""Policies as data: real returns in gymnasium, zoos of many training runs, and better policies by predicted returns.

Example:
    >>> PolicyArchitecture.of_environment("Pendulum-v1").parameter_shapes["layers.0.weight"]
    (16, 3)
"""

from nfn_opt.data.policies.architecture import Policy, PolicyArchitecture
from nfn_opt.data.policies.building import build_policy_zoo, split_runs
from nfn_opt.data.policies.improvement import ImproveConfig, Improvement, improve, random_steps
from nfn_opt.data.policies.picture import draw_policy_zoo
from nfn_opt.data.policies.prediction import ReturnPredictor, flip_signs, train_return_predictor
from nfn_opt.data.policies.rollouts import Returns, roll_out, visited_observations
from nfn_opt.data.policies.training import PolicyOptions

__all__ = [
    # what they are
    "Policy",
    "PolicyArchitecture",
    # real returns
    "Returns",
    "roll_out",
    "visited_observations",
    # zoos
    "PolicyOptions",
    "build_policy_zoo",
    "draw_policy_zoo",
    "split_runs",
    # predicted returns
    "ReturnPredictor",
    "flip_signs",
    "train_return_predictor",
    # better policies
    "ImproveConfig",
    "Improvement",
    "improve",
    "random_steps",
]
