"""Students: one file a family, the module that is trained, and the bundle that inference loads."""

from .bundle import LoadedStudent, load_student

__all__ = ["LoadedStudent", "load_student"]
