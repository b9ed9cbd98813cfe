//! Converts values to JSON and rejects numbers that JSON cannot represent; serde_json would replace them by
//! null.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use serde::ser::{
    Error as _, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use crate::error::Error;

/// Returns a value as JSON. Fails for a value that JSON cannot represent; the error names the path of a NaN
/// or an infinity within `field`.
pub(crate) fn to_json<T: Serialize + ?Sized>(field: &str, value: &T) -> Result<Vec<u8>, Error> {
    match value.serialize(Check) {
        Err(Problem { number: Some(number), path, .. }) => Err(Error::argument(format!(
            "{field}{path} is {number}, which JSON cannot represent: use null or a string"
        ))),
        _ => Ok(serde_json::to_vec(value)?), // which says best what else is wrong
    }
}

/// Why a value is rejected. The path is built from the inside on the way out, so that a valid value costs
/// nothing.
#[derive(Debug)]
struct Problem {
    number: Option<f64>,
    path: String,
}

impl Problem {
    fn inside(self, place: impl Display) -> Self {
        Self { path: format!("{place}{}", self.path), ..self }
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("no JSON")
    }
}

impl std::error::Error for Problem {}

impl serde::ser::Error for Problem {
    fn custom<T: Display>(_: T) -> Self {
        Self { number: None, path: String::new() }
    }
}

/// A serializer that writes nothing and fails for a number that is not finite.
struct Check;

impl Check {
    fn number(number: f64) -> Result<(), Problem> {
        if number.is_finite() { Ok(()) } else { Err(Problem { number: Some(number), ..Problem::custom("") }) }
    }
}

/// The contents of a value, for an enum after the name of the variant.
#[derive(Default)]
struct Inside {
    variant: Option<&'static str>,
    index: usize,
    key: String,
}

impl Inside {
    fn of(variant: &'static str) -> Self {
        Self { variant: Some(variant), ..Self::default() }
    }

    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Problem> {
        let index = self.index;
        self.index += 1;
        value.serialize(Check).map_err(|problem| self.around(problem.inside(format_args!("[{index}]"))))
    }

    fn field<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), Problem> {
        value.serialize(Check).map_err(|problem| self.around(problem.inside(format_args!(".{name}"))))
    }

    fn around(&self, problem: Problem) -> Problem {
        match self.variant {
            Some(variant) => problem.inside(format_args!(".{variant}")),
            None => problem,
        }
    }
}

fn text_of_key<T: Serialize + ?Sized>(key: &T) -> String {
    match serde_json::to_value(key) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => "?".into(),
    }
}

macro_rules! fine {
    ($($method:ident($type:ty)),*) => {$(
        fn $method(self, _: $type) -> Result<(), Problem> {
            Ok(())
        }
    )*};
}

impl Serializer for Check {
    type Ok = ();
    type Error = Problem;
    type SerializeSeq = Inside;
    type SerializeTuple = Inside;
    type SerializeTupleStruct = Inside;
    type SerializeTupleVariant = Inside;
    type SerializeMap = Inside;
    type SerializeStruct = Inside;
    type SerializeStructVariant = Inside;

    fine!(
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_i128(i128),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_u128(u128),
        serialize_char(char),
        serialize_str(&str),
        serialize_bytes(&[u8]),
        serialize_unit_struct(&'static str)
    );

    fn serialize_f32(self, value: f32) -> Result<(), Problem> {
        Self::number(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Problem> {
        Self::number(value)
    }

    fn serialize_none(self) -> Result<(), Problem> {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Problem> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Problem> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Problem> {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Problem> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Problem> {
        Inside::default().field(variant, value)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Inside, Problem> {
        Ok(Inside::default())
    }

    fn serialize_tuple(self, _: usize) -> Result<Inside, Problem> {
        Ok(Inside::default())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Inside, Problem> {
        Ok(Inside::default())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Inside, Problem> {
        Ok(Inside::of(variant))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Inside, Problem> {
        Ok(Inside::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Inside, Problem> {
        Ok(Inside::default())
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Inside, Problem> {
        Ok(Inside::of(variant))
    }
}

macro_rules! elements {
    ($($of:ident::$method:ident),*) => {$(
        impl $of for Inside {
            type Ok = ();
            type Error = Problem;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Problem> {
                self.element(value)
            }

            fn end(self) -> Result<(), Problem> {
                Ok(())
            }
        }
    )*};
}

elements!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

macro_rules! fields {
    ($($of:ident),*) => {$(
        impl $of for Inside {
            type Ok = ();
            type Error = Problem;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Problem> {
                self.field(name, value)
            }

            fn end(self) -> Result<(), Problem> {
                Ok(())
            }
        }
    )*};
}

fields!(SerializeStruct, SerializeStructVariant);

impl SerializeMap for Inside {
    type Ok = ();
    type Error = Problem;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Problem> {
        self.key = text_of_key(key);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Problem> {
        self.field(&self.key, value)
    }

    fn serialize_entry<K: Serialize + ?Sized, T: Serialize + ?Sized>(
        &mut self,
        key: &K,
        value: &T,
    ) -> Result<(), Problem> {
        value.serialize(Check).map_err(|problem| problem.inside(format_args!(".{}", text_of_key(key))))
    }

    fn end(self) -> Result<(), Problem> {
        Ok(())
    }
}
