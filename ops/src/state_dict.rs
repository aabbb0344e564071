//! state_dict
