"""Passes alerts of Alertmanager on to the group robots of DingTalk, Feishu and WeCom.

Standard library only: one folder that runs in any Python 3.11, also in the service's image.
"""
