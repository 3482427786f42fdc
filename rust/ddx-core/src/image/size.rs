//! The sizes that pictures may get, and which of them suits a picture.

use std::fmt;

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Size {
    /// As wide as high.
    #[must_use]
    pub fn square(side: u32) -> Self {
        Self { width: side, height: side }
    }

    /// Bytes of a picture of 8-bit RGB.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        self.width as usize * self.height as usize * 3
    }

    fn log_aspect(self) -> f64 {
        (f64::from(self.width) / f64::from(self.height)).ln()
    }

    /// Which of `sizes` has the aspect ratio nearest to this one's, so that the least is cut off; of equally near ones
    /// the first, of none 0.
    #[must_use]
    pub fn nearest(self, sizes: &[Self]) -> usize {
        let distance = |size: &Self| (size.log_aspect() - self.log_aspect()).abs();
        sizes
            .iter()
            .enumerate()
            .min_by(|(_, one), (_, other)| distance(one).total_cmp(&distance(other)))
            .map_or(0, |(index, _)| index)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x{}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_aspect_ratio_is_measured_in_doublings() {
        let sizes = [(32, 64), (64, 64), (64, 32)].map(|(width, height)| Size { width, height });
        let nearest = |width, height| Size { width, height }.nearest(&sizes);
        assert_eq!([nearest(300, 900), nearest(700, 1000), nearest(1000, 1001), nearest(1000, 600)], [0, 0, 1, 2]);
        assert_eq!([nearest(1000, 710), nearest(710, 1000)], [1, 1]); // 1.41 is less than half a doubling
    }
}
