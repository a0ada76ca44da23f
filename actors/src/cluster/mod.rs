//! The cluster: how nodes find, trust and reach each other, and who keeps what.
//!
//! From the bottom up: [`authority`] issues certificates and [`identity`] keeps a node's own; [`tls`] makes streams of them that both sides can
//! trust; [`wire`] is what nodes ask each other, over a [`connection`]; [`links`] asks, [`listener`] answers by what [`services`] offers; [`transport`] carries the groups' messages over them, snapshots at a [`pace`], and [`succession`] has groups find new leaders;
//! [`join`] brings a node in; the [`reconciler`] makes the steps of the [`plan`]; [`overview`] says how things stand; an [`operator`] asks and orders; [`recovery`] is the way out of a majority that is gone for good.

pub mod authority;
pub mod connection;
pub mod identity;
pub mod join;
pub mod links;
pub mod listener;
pub mod operator;
pub mod overview;
pub mod pace;
pub mod plan;
pub mod reconciler;
pub mod recovery;
pub mod replicas;
pub mod services;
pub mod succession;
pub mod tls;
pub mod token;
pub mod transport;
pub mod wire;
