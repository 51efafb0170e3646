/// A guest physical address in bytes.
public struct GuestPhysicalAddress: RawRepresentable, Hashable, Comparable, Codable, Sendable {
    public var rawValue: UInt64

    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    @inlinable public static func + (a: Self, bytes: UInt64) -> Self { Self(a.rawValue &+ bytes) }

    public init(from decoder: any Decoder) throws {
        rawValue = try decoder.singleValueContainer().decode(UInt64.self)
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(rawValue)
    }
}

/// The number of an exit: the time axis of a trace.
///
/// Exit 0 is the start of the recording; the first port access, MSR access, HLT and so on is exit 1. "The state at
/// exit n" is the state right after exit n has been completed, before anything else enters the guest.
public struct ExitNumber: RawRepresentable, Hashable, Comparable, Codable, Sendable {
    public var rawValue: UInt64

    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    public static let start = Self(0)

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    @inlinable public var next: Self { Self(rawValue &+ 1) }

    public init(from decoder: any Decoder) throws {
        rawValue = try decoder.singleValueContainer().decode(UInt64.self)
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(rawValue)
    }
}

/// A moment or a span of machine time, in nanoseconds since the machine was switched on.
public struct Nanoseconds: RawRepresentable, Hashable, Comparable, Codable, Sendable {
    public var rawValue: UInt64

    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    @inlinable public static func + (a: Self, b: Self) -> Self { Self(a.rawValue &+ b.rawValue) }

    /// The span from `b` to `a`, zero where `a` is the earlier one.
    @inlinable public static func - (a: Self, b: Self) -> Self { Self(a.rawValue >= b.rawValue ? a.rawValue &- b.rawValue : 0) }

    public static func microseconds(_ n: UInt64) -> Self { Self(n * 1_000) }
    public static func milliseconds(_ n: UInt64) -> Self { Self(n * 1_000_000) }
    public static func seconds(_ n: UInt64) -> Self { Self(n * 1_000_000_000) }

    public init(from decoder: any Decoder) throws {
        rawValue = try decoder.singleValueContainer().decode(UInt64.self)
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(rawValue)
    }
}

/// A number of instructions that a guest has completed. An exception or an interrupt that is taken is none.
public struct InstructionCount: RawRepresentable, Hashable, Comparable, Codable, Sendable {
    public var rawValue: UInt64

    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    @inlinable public static func + (a: Self, b: Self) -> Self { Self(a.rawValue &+ b.rawValue) }

    /// How many more `a` are than `b`, zero where they are fewer.
    @inlinable public static func - (a: Self, b: Self) -> Self { Self(a.rawValue >= b.rawValue ? a.rawValue &- b.rawValue : 0) }

    public init(from decoder: any Decoder) throws {
        rawValue = try decoder.singleValueContainer().decode(UInt64.self)
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(rawValue)
    }
}
