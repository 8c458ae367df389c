"""Estimation from small, longitudinal data: panels of daily reports."""

__all__: list[str] = []
