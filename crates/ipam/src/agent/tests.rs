//! Tests of the step machine over the store in memory.
