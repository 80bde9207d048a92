//! What a bucket does when its store, the network or the clock does not do what it should.
