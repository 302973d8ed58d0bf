//! scatterlist
