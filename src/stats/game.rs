//! One match and how its numbers move. Pure: chance and time come from the caller.

use rand::Rng;
use serde::Serialize;

/// Matches that are played at once; their ids are `0..MATCHES`.
pub const MATCHES: usize = 10;

const LENGTH_S: u32 = 90 * 60;

const TEAMS: [(&str, &str); MATCHES] = [
    ("Harbour", "Old Mill"),
    ("Northgate", "Riverside"),
    ("Lakeview", "Stonebridge"),
    ("Castle Hill", "Eastfield"),
    ("Red Quarry", "Westhaven"),
    ("Ironworks", "Greenwood"),
    ("Southport", "High Moor"),
    ("Lighthouse", "Valley"),
    ("Railway", "Brook End"),
    ("Sandbanks", "Fairview"),
];

/// A match as it stands: everything counts up until the final whistle, and then the two teams start anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Game {
    /// Its id, below [`MATCHES`].
    pub id: usize,
    /// Whole seconds played, of 90 minutes.
    pub second: u32,
    /// The team named first.
    pub home: Side,
    /// The team named second.
    pub away: Side,
}

/// One team's numbers in a match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The team's name.
    pub team: &'static str,
    /// Goals scored; each is a shot, too.
    pub goals: u32,
    /// Shots taken.
    pub shots: u32,
    /// Passes played to a team mate.
    pub passes: u32,
    /// Fouls committed.
    pub fouls: u32,
}

/// Every match in its first second.
pub(super) fn kick_off() -> Vec<Game> {
    (0..MATCHES).map(Game::kick_off).collect()
}

impl Game {
    fn kick_off(id: usize) -> Self {
        let (home, away) = TEAMS[id];
        Self {
            id,
            second: 0,
            home: Side::new(home),
            away: Side::new(away),
        }
    }

    /// Plays one second. One side has the ball and does something with it, so the numbers move at every step.
    pub(super) fn play_on(&mut self, rng: &mut impl Rng) {
        if self.second == LENGTH_S {
            *self = Self::kick_off(self.id);
        }
        self.second += 1;
        let (attacking, defending) = if rng.random_bool(0.5) {
            (&mut self.home, &mut self.away)
        } else {
            (&mut self.away, &mut self.home)
        };
        match rng.random_range(0..300) {
            0 => {
                attacking.goals += 1;
                attacking.shots += 1;
            }
            1..8 => attacking.shots += 1,
            8..12 => defending.fouls += 1,
            _ => attacking.passes += 1,
        }
    }
}

impl Side {
    fn new(team: &'static str) -> Self {
        Self {
            team,
            goals: 0,
            shots: 0,
            passes: 0,
            fouls: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn sum(game: &Game) -> u32 {
        let of = |side: &Side| side.shots + side.passes + side.fouls;
        of(&game.home) + of(&game.away)
    }

    #[test]
    fn something_happens_in_every_second() {
        let rng = &mut StdRng::seed_from_u64(7);
        let mut game = Game::kick_off(3);
        for second in 1..=LENGTH_S {
            game.play_on(rng);
            assert_eq!((game.second, sum(&game)), (second, second));
            assert!(game.home.goals <= game.home.shots && game.away.goals <= game.away.shots);
        }
    }

    #[test]
    fn a_new_match_follows_the_final_whistle() {
        let rng = &mut StdRng::seed_from_u64(7);
        let mut game = Game::kick_off(9);
        (0..LENGTH_S).for_each(|_| game.play_on(rng));
        game.play_on(rng);
        assert_eq!((game.id, game.second, sum(&game)), (9, 1, 1));
    }
}
