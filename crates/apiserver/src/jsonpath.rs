//! JSONPath of printer columns.
