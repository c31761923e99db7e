"""Numerics that every layer shares: dtypes, shapes, products, triangular factors and safe norms.

The package imports these functions from here, whichever module holds them.
:mod:`vfejax.numerics.triangular` says why none of them calls LAPACK.
"""

from vfejax.numerics import iteration, norms, precision, products, shapes, triangular
from vfejax.numerics.norms import (
    safe_norm,
    safe_sqrt,
    sinc_sqrt,
    tree_dot,
    tree_norm,
)
from vfejax.numerics.precision import (
    as_floating,
    at_least_float32,
    cast_like,
    common_dtype,
    floating_tree,
)
from vfejax.numerics.products import (
    diagonal,
    identity_like,
    matmul,
    matmul_nt,
    matmul_tn,
    matvec,
    symmetrize,
    transpose,
)
from vfejax.numerics.shapes import (
    broadcast_named,
    expand_leading,
    sum_to,
)
from vfejax.numerics.triangular import (
    cholesky,
    log_det_cholesky,
    triangular_inverse,
    triangular_solve,
    triangularize,
)

__all__ = [
    "as_floating",
    "at_least_float32",
    "broadcast_named",
    "cast_like",
    "cholesky",
    "common_dtype",
    "diagonal",
    "expand_leading",
    "floating_tree",
    "identity_like",
    "iteration",
    "log_det_cholesky",
    "matmul",
    "matmul_nt",
    "matmul_tn",
    "matvec",
    "norms",
    "precision",
    "products",
    "safe_norm",
    "safe_sqrt",
    "shapes",
    "sinc_sqrt",
    "sum_to",
    "symmetrize",
    "transpose",
    "tree_dot",
    "tree_norm",
    "triangular",
    "triangular_inverse",
    "triangular_solve",
    "triangularize",
]
