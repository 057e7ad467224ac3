/* Left empty: BCC brings its own definition of the BPF interface. */
