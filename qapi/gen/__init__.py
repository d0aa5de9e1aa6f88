"""Turns the QAPI schema of Vise into C++ types, introspection data and documentation."""
