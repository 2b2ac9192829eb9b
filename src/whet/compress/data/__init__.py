"""Data: samples in a fixed order, from files or from Python, checked when they are loaded and known by their hash."""

from whet.compress.data.apart import apart
from whet.compress.data.dataset import Dataset
from whet.compress.data.load import load_data
from whet.compress.data.preprocessing import Preprocessing
from whet.compress.data.split import check_overlap, split

__all__ = ["Dataset", "Preprocessing", "apart", "check_overlap", "load_data", "split"]
