/* Included by BCC, not used. */
