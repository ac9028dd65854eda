"""Scaling laws, one file per question they answer."""

from t5x_style.accounting.laws.chinchilla import LAWS, FrontierLaw, Law, ParametricLaw

__all__ = ["LAWS", "FrontierLaw", "Law", "ParametricLaw"]
