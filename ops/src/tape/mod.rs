//! Reverse-mode differentiation. Operations on [`Value`]s are recorded on a [`Tape`] together with their backward functions, and the tape is
//! walked from its end to its start for the gradients.
//!
//! Candle's own graph adds each gradient to fresh zeros and keeps every operand. Here a gradient is stored as it comes and added only where
//! a value is used more than once, an operation keeps only what its wanted gradients need, and its memory is freed as soon as it is passed.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use sam_ladder_ops::{Tape, gelu};
//!
//! // GELU of three numbers, and the gradient of their sum: Φ(x) + x·φ(x).
//! let x = Var::new(&[-1.0f32, 0.0, 1.0], &Device::Cpu)?;
//! let tape = Tape::default();
//! let y = gelu(&tape.leaf(&x))?;
//! let gradients = tape.backward(&y, y.tensor().ones_like()?)?;
//! let slope: Vec<f32> = gradients.get(&x).ok_or("no gradient")?.to_vec1()?;
//! assert_eq!(slope[1], 0.5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod views;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use candle_core::{Result, Shape, Tensor, TensorId, Var, bail};

use crate::add::add;

/// A tensor, and the place on a tape where its gradient will be, if one is wanted.
#[derive(Clone)]
pub struct Value {
    tensor: Tensor,
    place: Option<Place>,
}

#[derive(Clone)]
struct Place {
    tape: Tape,
    index: usize,
}

/// Recorded operations, in their order. Clones are the same tape.
#[derive(Clone, Default)]
pub struct Tape(Rc<RefCell<Recorded>>);

#[derive(Default)]
struct Recorded {
    steps: Vec<Step>,
    leaves: HashMap<TensorId, usize>,
    /// Number of places.
    places: usize,
}

/// An operation.
struct Step {
    /// The places of those inputs whose gradients are wanted.
    inputs: Vec<Option<usize>>,
    output: usize,
    backward: Backward,
}

/// From the gradient of the output to those of the inputs.
type Backward = Box<dyn FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>>>;

/// Gradients of leaves, by their tensors.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Value")
            .field("tensor", &self.tensor)
            .field("place", &self.place.as_ref().map(|place| place.index))
            .finish()
    }
}

impl From<Tensor> for Value {
    /// A constant.
    fn from(tensor: Tensor) -> Self {
        Value { tensor: tensor.detach(), place: None }
    }
}

impl From<&Tensor> for Value {
    fn from(tensor: &Tensor) -> Self {
        tensor.clone().into()
    }
}

impl Value {
    /// Its tensor, without a graph.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Its tensor, without a graph.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// Whether its gradient is wanted.
    pub fn is_recorded(&self) -> bool {
        self.place.is_some()
    }
}

impl Tape {
    /// A value whose gradient is wanted. For the same tensor it is the same value each time.
    pub fn leaf(&self, tensor: &Tensor) -> Value {
        let recorded = &mut *self.0.borrow_mut();
        let next = recorded.places;
        let index = *recorded.leaves.entry(tensor.id()).or_insert(next);
        if index == next {
            recorded.places += 1;
        }
        Value { tensor: tensor.detach(), place: Some(Place { tape: self.clone(), index }) }
    }

    /// The gradients of all leaves, given that of `output`. The tape is empty afterwards.
    ///
    /// # Errors
    /// Those of the operations' backward functions; a gradient of another shape than its value.
    pub fn backward(self, output: &Value, gradient: Tensor) -> Result<Gradients> {
        let Recorded { mut steps, leaves, places } = std::mem::take(&mut *self.0.borrow_mut());
        check_shape(gradient.shape(), output.tensor.shape())?;
        let mut gradients: Vec<Option<Tensor>> = vec![None; places];
        if let Some(place) = &output.place {
            gradients[place.index] = Some(gradient);
        }
        while let Some(step) = steps.pop() {
            let Some(gradient) = gradients[step.output].take() else { continue };
            let found = (step.backward)(&gradient)?;
            drop(gradient);
            for (index, found) in step.inputs.into_iter().zip(found) {
                let (Some(index), Some(found)) = (index, found) else { continue };
                gradients[index] = Some(match gradients[index].take() {
                    None => found,
                    Some(before) => add(&before, &found)?,
                });
            }
        }
        Ok(Gradients(leaves.into_iter().filter_map(|(id, index)| Some((id, gradients[index].take()?))).collect()))
    }
}

fn check_shape(found: &Shape, expected: &Shape) -> Result<()> {
    if found != expected {
        bail!("a gradient has shape {found:?}, its value {expected:?}");
    }
    Ok(())
}

impl Gradients {
    /// The gradient of a leaf; `None` if it does not reach the output.
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.0.get(&leaf.id())
    }

    /// Takes the gradient of a leaf.
    pub fn remove(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.0.remove(&leaf.id())
    }

    /// Adds the gradient of a leaf that another tape, or none, has computed; returns the one that it replaces.
    pub fn insert(&mut self, leaf: &Tensor, gradient: Tensor) -> Option<Tensor> {
        self.0.insert(leaf.id(), gradient)
    }

    /// Adds all of `others`.
    pub fn extend(&mut self, others: Gradients) {
        self.0.extend(others.0);
    }
}

/// The value of an operation's result, recorded if the gradient of an input is wanted. `backward` gets the gradient of the result and says for
/// each input whether its gradient is wanted; it returns those gradients.
///
/// # Errors
/// Inputs of different tapes.
pub fn record(
    tensor: Tensor,
    inputs: &[&Value],
    backward: impl FnOnce(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + 'static,
) -> Result<Value> {
    let Some(tape) = inputs.iter().find_map(|input| Some(input.place.as_ref()?.tape.clone())) else {
        return Ok(tensor.into());
    };
    if inputs.iter().flat_map(|input| &input.place).any(|place| !Rc::ptr_eq(&place.tape.0, &tape.0)) {
        bail!("the inputs of an operation are on different tapes");
    }
    let inputs: Vec<Option<usize>> = inputs.iter().map(|input| input.place.as_ref().map(|place| place.index)).collect();
    let wanted: Vec<bool> = inputs.iter().map(Option::is_some).collect();
    let recorded = &mut *tape.0.borrow_mut();
    let output = recorded.places;
    recorded.places += 1;
    recorded.steps.push(Step { inputs, output, backward: Box::new(move |gradient| backward(gradient, &wanted)) });
    Ok(Value { tensor: tensor.detach(), place: Some(Place { tape: tape.clone(), index: output }) })
}

/// Records an operation that is composed of candle's. Its backward pass computes it once more, on candle's graph.
///
/// # Errors
/// Those of the operation, and of [`record`].
pub fn record_composed(inputs: &[&Value], operation: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Result<Value> {
    let tensors: Vec<Tensor> = inputs.iter().map(|input| input.tensor.clone()).collect();
    let result = operation(&tensors)?;
    record(result, inputs, move |gradient, wanted| {
        let leaves = tensors.iter().zip(wanted).map(|(tensor, &wanted)| {
            let variable = if wanted { Some(Var::from_tensor(tensor)?) } else { None };
            Ok((variable.as_ref().map_or(tensor, Var::as_tensor).clone(), variable))
        });
        let leaves: Vec<(Tensor, Option<Var>)> = leaves.collect::<Result<_>>()?;
        let inputs: Vec<Tensor> = leaves.iter().map(|(tensor, _)| tensor.clone()).collect();
        // The sum of y·gradient has the gradients that `gradient` on y gives.
        let mut found = (operation(&inputs)? * gradient)?.sum_all()?.backward()?;
        Ok(leaves.iter().map(|(_, variable)| found.remove(variable.as_ref()?.as_tensor())).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn leaf(tape: &Tape, values: &[f32]) -> Result<(Tensor, Value)> {
        let tensor = Tensor::new(values, &Device::Cpu)?;
        let value = tape.leaf(&tensor);
        Ok((tensor, value))
    }

    fn product(a: &Value, b: &Value) -> Result<Value> {
        let (left, right) = (a.tensor().clone(), b.tensor().clone());
        record((&left * &right)?, &[a, b], move |gradient, wanted| {
            let of = |wanted: bool, other: &Tensor| wanted.then(|| gradient * other).transpose();
            Ok(vec![of(wanted[0], &right)?, of(wanted[1], &left)?])
        })
    }

    /// d(a²·b·c) = (2·a·b·c, a²·c) with a constant c.
    #[test]
    fn a_value_that_is_used_twice_gets_the_sum() -> Result<()> {
        let tape = Tape::default();
        let ((a, at_a), (b, at_b)) = (leaf(&tape, &[3.0, -1.0])?, leaf(&tape, &[2.0, 5.0])?);
        let c = Value::from(Tensor::new(&[10f32, 1.0], &Device::Cpu)?);
        let y = product(&product(&product(&at_a, &tape.leaf(&a))?, &at_b)?, &c)?;
        let gradients = tape.backward(&y, Tensor::new(&[1f32, 2.0], &Device::Cpu)?)?;
        assert_eq!(gradients.get(&a).unwrap().to_vec1::<f32>()?, [120.0, -20.0]);
        assert_eq!(gradients.get(&b).unwrap().to_vec1::<f32>()?, [90.0, 2.0]);
        assert!(gradients.get(c.tensor()).is_none());
        Ok(())
    }

    #[test]
    fn constants_record_nothing() -> Result<()> {
        let tape = Tape::default();
        let c = Value::from(Tensor::new(&[1f32], &Device::Cpu)?);
        assert!(!product(&c, &c)?.is_recorded());
        let (a, unused) = leaf(&tape, &[1.0])?;
        assert!(unused.is_recorded() && tape.0.borrow().steps.is_empty());
        assert!(tape.backward(&c, c.tensor().clone())?.get(&a).is_none());
        Ok(())
    }

    /// The same function, composed of candle's operations.
    #[test]
    fn composed_operations_have_candles_gradients() -> Result<()> {
        let tape = Tape::default();
        let ((a, at_a), (b, at_b)) = (leaf(&tape, &[3.0, -1.0])?, leaf(&tape, &[2.0, 5.0])?);
        let c = Value::from(Tensor::new(&[10f32, 1.0], &Device::Cpu)?);
        let y = record_composed(&[&at_a, &at_b, &c], |t| t[0].sqr()? * (&t[1] * &t[2])?)?;
        let gradients = tape.backward(&y, Tensor::new(&[1f32, 2.0], &Device::Cpu)?)?;
        assert_eq!(gradients.get(&a).unwrap().to_vec1::<f32>()?, [120.0, -20.0]);
        assert_eq!(gradients.get(&b).unwrap().to_vec1::<f32>()?, [90.0, 2.0]);
        Ok(())
    }

    #[test]
    fn misuse_is_refused() -> Result<()> {
        let (one, other) = (Tape::default(), Tape::default());
        let ((_, a), (_, b)) = (leaf(&one, &[1.0])?, leaf(&other, &[1.0])?);
        assert!(product(&a, &b).unwrap_err().to_string().contains("different tapes"));
        assert!(one.backward(&a, Tensor::new(&[1f32, 1.0], &Device::Cpu)?).unwrap_err().to_string().contains("shape"));
        Ok(())
    }
}
