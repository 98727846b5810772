"""Chinese couplets (对联): upper lines to lower lines, rules, a `CoupletWriter`."""
