//! What is wrong with a plan file, and where.

use std::{fmt, sync::Arc};

/// Most mistakes that one [`LoadError`] lists; the rest are counted.
pub const MOST_MISTAKES: usize = 100;

/// A place in a file, as editors count: both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

impl Place {
    /// The place behind `text`, which a file begins with.
    pub fn after(text: &str) -> Self {
        let line = text.rsplit('\n').next().unwrap_or_default();
        Self {
            line: text.matches('\n').count() as u32 + 1,
            column: line.chars().count() as u32 + 1,
        }
    }
}

/// Tells where something stood first: `, first at line 4`; nothing where there are no lines.
pub fn first_at(place: Option<Place>) -> String {
    place.map_or_else(String::new, |place| {
        format!(", first at line {}", place.line)
    })
}

/// One mistake or warning. Reads `plans.yaml:4:5: descriptors[0].limitz: unknown field, did you mean `limits`?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file, as it was named to us.
    pub file: Arc<str>,
    /// Where in it; none if the file as a whole is meant, or it is no file.
    pub place: Option<Place>,
    /// Fields and indexes from the top of the file: `descriptors[0].limitz`. Empty for the top itself.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why plans do not load: every mistake of every file, one per line, in the order of files and lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    mistakes: Vec<Mistake>,
    total: usize,
}

impl LoadError {
    /// The mistakes, at most [`MOST_MISTAKES`].
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// How many there are in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The same, where a file goes by another name.
    pub fn calling(mut self, file: &str, name: &str) -> Self {
        let name: Arc<str> = Arc::from(name);
        for mistake in &mut self.mistakes {
            if *mistake.file == *file {
                mistake.file = Arc::clone(&name);
            }
        }
        self
    }
}

impl From<Mistake> for LoadError {
    fn from(mistake: Mistake) -> Self {
        Self {
            mistakes: vec![mistake],
            total: 1,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{mistake}")?;
        }
        match self.total - self.mistakes.len() {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for LoadError {}

/// Collects what is noticed while files are read.
#[derive(Debug, Default)]
pub struct Notes {
    errors: Vec<Mistake>,
    total: usize,
    warnings: Vec<Mistake>,
}

impl Notes {
    /// Notes something that keeps the plans from loading.
    pub fn error(&mut self, mistake: Mistake) {
        self.total += 1;
        if self.errors.len() < MOST_MISTAKES {
            self.errors.push(mistake);
        }
    }

    /// Notes something that is tolerated.
    pub fn warning(&mut self, mistake: Mistake) {
        if self.warnings.len() < MOST_MISTAKES {
            self.warnings.push(mistake);
        }
    }

    /// Takes over what was noticed apart.
    pub fn absorb(&mut self, apart: Self) {
        self.total += apart.total;
        let room = MOST_MISTAKES.saturating_sub(self.errors.len());
        self.errors.extend(apart.errors.into_iter().take(room));
        let room = MOST_MISTAKES.saturating_sub(self.warnings.len());
        self.warnings.extend(apart.warnings.into_iter().take(room));
    }

    /// Mistakes so far.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The warnings, if nothing was wrong. By file in the order read, then by place.
    ///
    /// # Errors
    /// All mistakes, in that order.
    pub fn finish(self) -> Result<Vec<Mistake>, LoadError> {
        match self.both() {
            (None, warnings) => Ok(warnings),
            (Some(error), _) => Err(error),
        }
    }

    /// All mistakes, if there are any, and the warnings; both in that order.
    pub fn both(self) -> (Option<LoadError>, Vec<Mistake>) {
        let error = (self.total > 0).then(|| LoadError {
            mistakes: sorted(self.errors),
            total: self.total,
        });
        (error, sorted(self.warnings))
    }
}

fn sorted(mut mistakes: Vec<Mistake>) -> Vec<Mistake> {
    let mut files: Vec<Arc<str>> = Vec::new();
    for mistake in &mistakes {
        if !files.contains(&mistake.file) {
            files.push(Arc::clone(&mistake.file));
        }
    }
    mistakes.sort_by_key(|mistake| {
        let file = files.iter().position(|file| *file == mistake.file);
        (file, mistake.place)
    });
    mistakes
}

/// The way from the top of a file to a value, kept on the stack and written out only when there is something to say.
#[derive(Debug, Clone, Copy)]
pub enum Path<'a> {
    /// The file itself.
    Top,
    /// A field of a map.
    Field(&'a Path<'a>, &'a str),
    /// An item of a list.
    Item(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    /// One field further.
    pub fn field(&'a self, name: &'a str) -> Self {
        Self::Field(self, name)
    }

    /// One item further.
    pub fn item(&'a self, index: usize) -> Self {
        Self::Item(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => Ok(()),
            Self::Field(Self::Top, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// ``, did you mean `limits`?`` for the nearest of `known`, or nothing if none is near.
pub fn did_you_mean<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let lower = text.to_lowercase();
    let known: Vec<_> = known.into_iter().collect();
    let begun = known
        .iter()
        .find(|name| lower.len() >= 4 && name.starts_with(&lower));
    if let Some(name) = begun {
        return format!(", did you mean `{name}`?");
    }
    known
        .into_iter()
        .map(|name| {
            (
                strsim::damerau_levenshtein(&lower, &name.to_lowercase()),
                name,
            )
        })
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| format!(", did you mean `{name}`?"))
        .unwrap_or_default()
}
