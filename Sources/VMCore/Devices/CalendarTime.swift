/// A moment of the proleptic Gregorian calendar, years 0 to 9999, without time zones or leap seconds.
package struct CalendarTime: Equatable, Sendable {
    package var year: Int64
    package var month: Int64
    package var day: Int64
    package var secondOfDay: Int64

    static let secondsPerDay: Int64 = 86_400

    /// What four digits of year can show: 0000-01-01T00:00:00 to 9999-12-31T23:59:59.
    package static let range: ClosedRange<Int64> = -62_167_219_200 ... 253_402_300_799

    package init(year: Int64, month: Int64, day: Int64, secondOfDay: Int64) {
        self.year = year
        self.month = month
        self.day = day
        self.secondOfDay = secondOfDay
    }

    /// The moment `seconds` after 1970-01-01T00:00:00; moments outside of `range` wrap around within it.
    package init(secondsSince1970 seconds: Int64) {
        let span = Self.range.upperBound - Self.range.lowerBound + 1
        // Counting days from 1 March of year 0 puts the leap day at the end of a year.
        let (sinceStart, overflow) = seconds.subtractingReportingOverflow(Self.range.lowerBound)
        let wrapped = overflow ? 0 : (sinceStart % span + span) % span
        secondOfDay = wrapped % Self.secondsPerDay
        let dayNumber = wrapped / Self.secondsPerDay - 60 + Self.daysPerEra
        let era = dayNumber / Self.daysPerEra
        let dayOfEra = dayNumber % Self.daysPerEra
        let yearOfEra = (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let monthFromMarch = (5 * dayOfYear + 2) / 153
        day = dayOfYear - (153 * monthFromMarch + 2) / 5 + 1
        month = monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9
        year = yearOfEra + (era - 1) * 400 + (month <= 2 ? 1 : 0)
    }

    /// Seconds since 1970-01-01T00:00:00; a day beyond the end of its month runs on into the next.
    package var secondsSince1970: Int64 {
        let marchYear = (month <= 2 ? year - 1 : year) + 400
        let era = marchYear / 400
        let yearOfEra = marchYear % 400
        let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
        let dayNumber = (era - 1) * Self.daysPerEra + dayOfEra + 60
        return Self.range.lowerBound + dayNumber * Self.secondsPerDay + secondOfDay
    }

    /// Days in a cycle of 400 years.
    private static let daysPerEra: Int64 = 146_097

    /// 1 for Sunday to 7 for Saturday.
    package var weekday: Int64 {
        let days = (secondsSince1970 - Self.range.lowerBound) / Self.secondsPerDay
        return (days + 6) % 7 + 1
    }
}
