//! The CRD types of Portolan, their conditions, label keys and names.
