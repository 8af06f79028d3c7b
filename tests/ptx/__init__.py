"""Executes PTX that Triton has compiled for NVIDIA's sm_80 and sm_90, without a GPU.

It stops where code does what PTX leaves open; docs/decisions.md says what it shows and what not.
"""
