//! Calico's selector language over labels (data model §11).
