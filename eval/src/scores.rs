//! A score of every case and organ, as a matrix, and its means.

use crate::statistics::mean;
use sam_ladder_schemas::tables::CaseRow;

/// Selects a score of a row.
pub(crate) type ScoreOf = fn(&CaseRow) -> Option<f64>;

/// Values by organ and case.
#[derive(Debug, Clone)]
pub(crate) struct Scores {
    /// In the order of their first rows.
    pub cases: Vec<String>,
    /// `[organ][case]`, organs in the order of the class names.
    values: Vec<Vec<Option<f64>>>,
}

impl Scores {
    /// The rows' `score`s; undefined for a case and organ without a row.
    pub fn new(rows: &[CaseRow], class_names: &[String], score: ScoreOf) -> Scores {
        let mut cases: Vec<String> = Vec::new();
        for row in rows {
            if !cases.contains(&row.case) {
                cases.push(row.case.clone());
            }
        }
        let mut values = vec![vec![None; cases.len()]; class_names.len()];
        for row in rows {
            let organ = class_names.iter().position(|name| *name == row.organ);
            let case = cases.iter().position(|name| *name == row.case);
            if let (Some(organ), Some(case)) = (organ, case) {
                values[organ][case] = score(row);
            }
        }
        Scores { cases, values }
    }

    /// Number of organs.
    pub fn organs(&self) -> usize {
        self.values.len()
    }

    /// One value.
    pub fn get(&self, organ: usize, case: usize) -> Option<f64> {
        self.values[organ][case]
    }

    /// Mean of a case over the organs whose value is defined.
    pub fn case_mean(&self, case: usize) -> Option<f64> {
        mean(self.values.iter().filter_map(|organ| organ[case]))
    }

    /// Defined values of an organ.
    pub fn of_organ(&self, organ: usize) -> Vec<f64> {
        self.values[organ].iter().copied().flatten().collect()
    }

    /// Number of cases with a value of an organ, or of any if `organ` is `None`.
    pub fn cases_of(&self, organ: Option<usize>) -> usize {
        let has = |case: usize| match organ {
            Some(organ) => self.get(organ, case).is_some(),
            None => (0..self.organs()).any(|organ| self.get(organ, case).is_some()),
        };
        (0..self.cases.len()).filter(|&case| has(case)).count()
    }

    /// Indices of all cases.
    pub fn all(&self) -> Vec<u32> {
        (0..self.cases.len() as u32).collect()
    }

    /// Mean of an organ's defined values over some cases, which may repeat.
    pub fn organ_mean(&self, organ: usize, cases: &[u32]) -> Option<f64> {
        mean(cases.iter().filter_map(|&case| self.values[organ][case as usize]))
    }

    /// Mean of the organs' means.
    pub fn overall_mean(&self, cases: &[u32]) -> Option<f64> {
        mean((0..self.organs()).filter_map(|organ| self.organ_mean(organ, cases)))
    }

    /// Mean of an organ, or over the organs if `organ` is `None`.
    pub fn mean_of(&self, organ: Option<usize>, cases: &[u32]) -> Option<f64> {
        match organ {
            Some(organ) => self.organ_mean(organ, cases),
            None => self.overall_mean(cases),
        }
    }
}
