"""Gradio's theme for this page: every colour is a variable of assets/page/colours.css, fonts are the system's own.

No font or style is fetched from elsewhere: the page works without a network.
"""

from __future__ import annotations

import gradio as gr

SANS = (
    "-apple-system", "Segoe UI Variable Text", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "Liberation Sans",
    "sans-serif",
)  # fmt: skip
MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Menlo", "Consolas", "Liberation Mono", "monospace")


def theme() -> gr.themes.Base:
    """A quiet theme; light and dark follow the variables, so each is set once."""
    colours = {
        "body_background_fill": "var(--sd-page)",
        "body_text_color": "var(--sd-ink)",
        "body_text_color_subdued": "var(--sd-muted)",
        "background_fill_primary": "var(--sd-panel)",
        "background_fill_secondary": "var(--sd-raised)",
        "border_color_primary": "var(--sd-line)",
        "border_color_accent": "var(--sd-focus)",
        "color_accent_soft": "var(--sd-raised)",
        "block_background_fill": "transparent",
        "block_border_color": "var(--sd-line)",
        "block_label_background_fill": "transparent",
        "block_label_text_color": "var(--sd-muted)",
        "block_title_text_color": "var(--sd-muted)",
        "block_info_text_color": "var(--sd-muted)",
        "input_background_fill": "var(--sd-panel)",
        "input_background_fill_focus": "var(--sd-panel)",
        "input_background_fill_hover": "var(--sd-panel)",
        "input_border_color": "var(--sd-edge)",
        "input_border_color_focus": "var(--sd-focus)",
        "input_border_color_hover": "var(--sd-muted)",
        "input_placeholder_color": "var(--sd-muted)",
        "button_primary_background_fill": "var(--sd-ink)",
        "button_primary_background_fill_hover": "var(--sd-ink-strong)",
        "button_primary_text_color": "var(--sd-page)",
        "button_primary_text_color_hover": "var(--sd-page)",
        "button_primary_border_color": "var(--sd-ink)",
        "button_primary_border_color_hover": "var(--sd-ink-strong)",
        "button_secondary_background_fill": "var(--sd-panel)",
        "button_secondary_background_fill_hover": "var(--sd-raised)",
        "button_secondary_text_color": "var(--sd-ink)",
        "button_secondary_text_color_hover": "var(--sd-ink)",
        "button_secondary_border_color": "var(--sd-edge)",
        "button_secondary_border_color_hover": "var(--sd-muted)",
        "slider_color": "var(--sd-ink)",
        "panel_background_fill": "transparent",
        "link_text_color": "var(--sd-link)",
        "link_text_color_hover": "var(--sd-link)",
        "link_text_color_visited": "var(--sd-link)",
    }
    built = gr.themes.Base(
        primary_hue="slate",
        secondary_hue="slate",
        neutral_hue="slate",
        radius_size="md",
        spacing_size="md",
        text_size="md",
        font=[gr.themes.Font(name) for name in SANS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    )
    built.set(
        **colours,
        **{f"{name}_dark": value for name, value in colours.items()},
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_padding="0px",
        block_title_text_weight="500",
        block_title_text_size="0.8125rem",
        block_info_text_size="0.8125rem",
        button_large_text_weight="600",
        button_primary_shadow="none",
        button_primary_shadow_hover="none",
        button_secondary_shadow="none",
        button_secondary_shadow_hover="none",
        button_border_width="1px",
        button_border_width_dark="1px",
        button_large_text_size="0.9375rem",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_shadow="none",
        input_shadow_focus="none",
        layout_gap="8px",
    )
    return built
