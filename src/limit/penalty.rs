//! Limits that penalise who runs into them again and again, and the limit that a penalty is.

use std::{sync::Arc, time::Duration};

use super::{Kind, Limit, LimitError, Refill};

/// Longest time that a penalty says anything about.
const MOST: Duration = Duration::from_secs(366 * 86_400);

/// How who runs into a limit again and again is refused for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Penalty {
    /// Refusals that bring a penalty.
    pub after: u32,
    /// How long after the first of them the others must come.
    pub within: Duration,
    /// Length of the first penalty. Each further one is twice as long as the one before.
    pub first: Duration,
    /// Longest penalty; also how long after the end of the last one it is forgotten.
    pub longest: Duration,
}

impl Limit {
    /// The same limit with a penalty.
    ///
    /// # Errors
    /// [`LimitError::PenaltyLength`]; [`LimitError::PenaltyWithoutRefusals`]; [`LimitError::ZeroWithPenalty`].
    pub fn with_penalty(self, penalty: Penalty) -> Result<Self, LimitError> {
        let lengths = [penalty.within, penalty.first, penalty.longest];
        let counted = |length: &Duration| (Duration::from_micros(1)..=MOST).contains(length);
        if !lengths.iter().all(counted) || penalty.longest < penalty.first {
            return Err(LimitError::PenaltyLength);
        }
        if penalty.after == 0 {
            return Err(LimitError::PenaltyWithoutRefusals);
        }
        if self.count == 0 {
            return Err(LimitError::ZeroWithPenalty);
        }
        let penalty = Some(Arc::new(penalty));
        Ok(Self { penalty, ..self })
    }

    /// Its penalty, if it has one. A limit of [`Kind::Penalty`] is this penalty.
    pub fn penalty(&self) -> Option<&Penalty> {
        self.penalty.as_deref()
    }

    /// The penalty of this limit as a limit of its own, whose bucket counts the refusals. It has the same period, so that the
    /// two are kept in one place.
    pub fn guard(&self) -> Option<Self> {
        let penalises = self.penalty.is_some() && self.kind != Kind::Penalty;
        penalises.then(|| Self {
            kind: Kind::Penalty,
            delay_us: 0,
            refill: Refill::NEVER,
            zone: None,
            ..self.clone()
        })
    }

    /// The penalty that a limit of [`Kind::Penalty`] is.
    ///
    /// # Panics
    /// If it is of another kind and has none.
    pub fn terms(&self) -> &Penalty {
        self.penalty().expect("guard() makes them of penalties")
    }
}
