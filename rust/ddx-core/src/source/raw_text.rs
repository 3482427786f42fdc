//! The schema of a parquet file in which texts are bytes.
//!
//! Decoded as text, a single string that is not UTF-8 fails the thousand rows that are decoded together, and with them
//! the rest of their part. As bytes it costs its own row.

use std::sync::Arc;

use parquet::basic::{ConvertedType, Type as PhysicalType};
use parquet::errors::Result;
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};

/// The same columns, none of which says that its bytes are text.
pub(super) fn without_text(schema: &SchemaDescriptor) -> Result<SchemaDescriptor> {
    Ok(SchemaDescriptor::new(bare(&schema.root_schema_ptr())?))
}

fn bare(node: &TypePtr) -> Result<TypePtr> {
    let info = node.get_basic_info();
    let id = info.has_id().then(|| info.id());
    match node.as_ref() {
        Type::GroupType { fields, .. } => {
            let mut group = Type::group_type_builder(info.name())
                .with_fields(fields.iter().map(bare).collect::<Result<_>>()?)
                .with_converted_type(info.converted_type())
                .with_logical_type(info.logical_type_ref().cloned())
                .with_id(id);
            if info.has_repetition() {
                group = group.with_repetition(info.repetition());
            }
            group.build().map(Arc::new)
        }
        Type::PrimitiveType { .. } if !is_text(node) => Ok(Arc::clone(node)),
        Type::PrimitiveType { physical_type, .. } => Type::primitive_type_builder(info.name(), *physical_type)
            .with_repetition(info.repetition())
            .with_id(id)
            .build()
            .map(Arc::new),
    }
}

fn is_text(node: &Type) -> bool {
    let info = node.get_basic_info();
    node.get_physical_type() == PhysicalType::BYTE_ARRAY && info.converted_type() != ConvertedType::DECIMAL
}
